//! A worker that serves: real sockets, the real publisher, real clients.

mod clients;
mod ends;
mod house;
mod limits;
mod profiling;
mod publishing;
mod sending;
mod subscribing;
