"""Load for a gateway: crowds of clients in many processes, here and on other machines.

Reading order: `swarm/` is the Rust crate whose programs hold the clients; `programs` conducts one
process, `crowd` many as one, `agent` lends a machine to a crowd that is conducted elsewhere;
`latencies` adds up what they measured, `stream` publishes; `run` makes a test of it all, and
`command` is `tidegate load`.
"""
