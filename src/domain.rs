//! The words of the shop and the one decision, pure: no database, no network, no runtime.

mod text;
mod word;
pub mod time;
pub mod ids;
pub mod sku;
pub mod product;
pub mod quantity;
pub mod lines;
pub mod names;
pub mod terms;
pub mod holdings;
pub mod inventory;
pub mod movement;
pub mod order;
pub mod rules;
pub mod life;
pub mod rejection;
pub mod lane_set;
pub mod origin;
pub mod command;
pub mod verdict;
pub mod event;
pub mod outcome;
pub mod decide;
