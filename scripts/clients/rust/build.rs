//! Generates the client from the contract.

use std::{env, error::Error, fs, path::Path};

use progenitor::{GenerationSettings, Generator, InterfaceStyle};

const CONTRACT: &str = "../../../apispec.json";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={CONTRACT}");
    let contract = serde_json::from_str(&fs::read_to_string(CONTRACT)?)?;
    let mut settings = GenerationSettings::new();
    settings.with_interface(InterfaceStyle::Builder);
    let client = syn::parse2(Generator::new(&settings).generate_tokens(&contract)?)?;
    fs::write(Path::new(&env::var("OUT_DIR")?).join("client.rs"), prettyplease::unparse(&client))?;
    Ok(())
}
