//! antre: the order service that a shop can trust on the day of its flash sale.
//!
//! The way of one order, which is also the order in which to read:
//!
//! 1. [`http`] parses the request into the types of [`domain`], which cannot be invalid;
//! 2. [`service::ordering`] queues the order with [`service::dispatcher`] and waits for its verdict, unless
//!    [`service::order_gate`] knows that its product is closed to orders;
//! 3. [`queue`] keeps a lane for each product, first come, first served;
//! 4. [`worker`] takes all that has arrived, from all of its lanes;
//! 5. [`domain::decide`] decides it, a pure function of inventories, stored orders and commands;
//! 6. [`store`] does that in one transaction: lock, decide, insert the orders, move the stock, commit;
//! 7. and the verdict goes back: [`queue`], [`service::ordering`], [`http`].
//!
//! A reservation changes the same way: payment, cancellation and expiry are [`domain::command`]s in the order's lane.
//! [`service::batch_loader`] finds the order that a client names, [`worker::expiry`] the reservations that are due.
//! [`service::catalog`] is for products and their stock.
//!
//! [`monitor`] has what operators see of all that.
//!
//! [`lane_watch`] ensures that processes with different lanes serve each other. [`app`] wires a process together as its
//! [`settings`] say, and [`tools`] has the tools for the operator. `ARCHITECTURE.md` explains the same at length, and
//! `docs/glossary.md` lists the words.
//!
//! [`rehearse`] plays a flash sale against a running antre, over its REST API only.

pub mod domain;
pub mod http;
pub mod service;
pub mod queue;
pub mod worker;
pub mod store;
pub mod lane_watch;
pub mod monitor;
pub mod supervise;
pub mod backoff;
pub mod clock;
pub mod digits;
pub mod rehearse;
pub mod settings;
pub mod server_url;
pub mod dotenv;
pub mod app;
pub mod telemetry;
pub mod tools;
