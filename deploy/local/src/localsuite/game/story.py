"""A storyteller's evening."""


async def tell_story(*args):
    return None
