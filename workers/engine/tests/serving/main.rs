//! A worker that serves: real sockets, the real publisher, real clients.

mod clients;
mod ends;
#[path = "../support/engine.rs"]
mod engine;
mod house;
mod limits;
mod publishing;
mod sending;
mod subscribing;
