//! The words of the shop and the one decision, pure: no database, no network, no runtime.

mod word;
pub mod time;
pub mod ids;
pub mod sku;
pub mod product;
pub mod quantity;
pub mod lines;
pub mod names;
pub mod inventory;
pub mod order;
pub mod rejection;
pub mod lane_set;
pub mod origin;
pub mod command;
pub mod verdict;
pub mod event;
pub mod outcome;
pub mod decide;
