"""How players, model servers and the cloud behave, in virtual and in real time.

Importing this package has no side effects. The pieces, each a module:

- `players`, `arrivals`, `token_lengths`: who plays, what they ask for, and when
- `profiles`, `model_server`, `cold_start`, `simulated_gpu`: what a model server does with it
- `cloud`, `scaling_group`: EC2 and Auto Scaling, with stock, Spot and prices
- `virtual_time`, `simulation`, `routing`, `scaling`: the whole fleet in virtual time
- `fluid`: the same world as flows, for weeks in seconds
- `vllm_http`: simulated vLLM servers over real sockets, in real time
"""

__all__: list[str] = []
