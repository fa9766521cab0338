"""Past forms of the English verbs that stemming does not bring together: went is not near to go.

A question about what happened asks with "did" and a verb's first form, and what happened is told in
the past. Of regular verbs both forms have one stem, of these they have two.
"""

import re

__all__ = ["with_past_forms"]

_WORD = re.compile(r"[^\W\d_]+")
_ASKS = "did"
_FORMS = """
    arise arose, awake awoke, bear bore, become became, begin began, bend bent, bind bound,
    bite bit, bleed bled, blow blew, break broke, breed bred, bring brought, build built,
    burn burnt, buy bought, catch caught, choose chose, cling clung, come came, creep crept,
    deal dealt, dig dug, draw drew, dream dreamt, drink drank, drive drove, dwell dwelt,
    eat ate, fall fell, feed fed, feel felt, fight fought, find found, flee fled,
    fling flung, fly flew, forbid forbade, forget forgot, forgive forgave, forsake forsook,
    freeze froze, get got, give gave, go went, grind ground, grow grew, hang hung, have had,
    hear heard, hide hid, hold held, keep kept, kneel knelt, know knew, lay laid, lead led,
    lean leant, leap leapt, learn learnt, leave left, lend lent, lie lay, light lit,
    lose lost, make made, mean meant, meet met, mistake mistook, overcome overcame,
    overhear overheard, overtake overtook, pay paid, ride rode, ring rang, rise rose,
    run ran, say said, see saw, seek sought, sell sold, send sent, shake shook, shine shone,
    shoot shot, shrink shrank, sing sang, sink sank, sit sat, slay slew, sleep slept,
    slide slid, sling slung, sneak snuck, speak spoke, spend spent, spill spilt, spin spun,
    spit spat, spring sprang, stand stood, steal stole, stick stuck, sting stung,
    stink stank, stride strode, strike struck, strive strove, swear swore, sweep swept,
    swim swam, swing swung, take took, teach taught, tear tore, tell told, think thought,
    throw threw, tread trod, undergo underwent, understand understood, undertake undertook,
    undo undid, wake woke, wear wore, weave wove, weep wept, win won, wind wound,
    withdraw withdrew, wring wrung, write wrote
"""
_PAST = dict(pair.split() for pair in _FORMS.split(","))


def with_past_forms(question: str) -> str:
    """Returns a question that asks with "did", and the past forms of its irregular verbs.

    Any other text is returned as it is.
    """
    words = [word.lower() for word in _WORD.findall(question)]
    if _ASKS not in words:
        return question
    past = [_PAST[word] for word in dict.fromkeys(words) if word in _PAST]
    return " ".join([question, *past])
