//! antre: the order service that a shop can trust on the day of its flash sale.
//!
//! The way of one order, which is also the order in which to read:
//!
//! 1. [`http`] parses the request into [`order`]'s types, which cannot be invalid;
//! 2. [`placement`] puts the order in line and waits for its verdict, unless the [`gate`] knows that nothing is left;
//! 3. [`queue`] keeps a lane for each product: orders stand in it first come, first served;
//! 4. [`worker`] takes all that has arrived, from all of its lanes;
//! 5. [`batch`] decides it, a pure function over each product's [`inventory`];
//! 6. [`store`] does that in one transaction: lock, decide, insert the orders, move the stock, commit;
//! 7. and the verdict goes back: [`queue`], [`placement`], [`http`].
//!
//! What becomes of a reservation goes the same way: payment, cancellation and expiry are [`command`]s in the order's lane.
//! [`lookup`] finds the order that a client means, [`expiry`] those whose time is over.
//!
//! [`lane_watch`] sees to it that processes with different lanes meet all the same.
//!
//! [`app`] wires a process together as its [`settings`] say. `ARCHITECTURE.md` tells the same at length.

pub mod domain;
pub mod http;
pub mod service;
pub mod queue;
pub mod worker;
pub mod store;
pub mod lane_watch;
pub mod supervise;
pub mod clock;
pub mod settings;
pub mod server_url;
pub mod dotenv;
pub mod app;
pub mod telemetry;
