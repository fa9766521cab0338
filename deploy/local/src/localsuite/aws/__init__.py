"""A local AWS: capacity from a simulation in time, everything else from moto.

`server.LocalAwsServer` serves a `region.Region`; `account.seed_account` fills it. Importing this
package alone costs nothing; moto is loaded by `server`.
"""
