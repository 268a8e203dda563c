"""The demonstration: a day of real flights, replayed through a gateway to thousands of clients."""
