//! Answers as providers send them, priced: what they are read as, and what they cost to the nano-dollar. Each file of
//! `golden/` holds an answer, a price as a configuration states it, and what was worked out by hand.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::fs;
use std::path::Path;
use tollkeeper_config::{Price, Usd};
use tollkeeper_protocol::passthrough::{peek_body, peek_chunk};
use tollkeeper_protocol::usage::Usage;

/// The price that a `[prices]` table states.
fn price(table: &str) -> Price {
    let text = format!(
        "[[providers]]\nname = \"p\"\nkind = \"custom\"\nbase_url = \"http://localhost:1/v1\"\n\n[prices.\"p/m\"]\n{table}\n"
    );
    let config = tollkeeper_config::parse(&text, Path::new("golden.toml"), &|_| None).unwrap();
    config.catalog.models["p/m"].price.clone()
}

#[test]
fn golden_answers_are_read_and_priced_as_worked_out_by_hand() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 16, "{files:?}");
    for file in files {
        let case: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let answer = case["answer"].to_string();
        let expected: Usage = serde_json::from_value(case["usage"].clone()).unwrap();
        for usage in [peek_body(answer.as_bytes()).unwrap().usage, peek_chunk(answer.as_bytes()).unwrap().usage] {
            assert_eq!(usage, Some(expected), "{}", file.display());
        }
        let nano = case["nano_dollars"].as_i64().unwrap();
        // The lines by hand add up to it, and are what is charged.
        let lines = case["nano_dollars_by_hand"].as_array().unwrap();
        let tenths = |line: &Value| {
            let (_, sum) = line.as_str().unwrap().split_once("= ").unwrap();
            let (whole, tenth) = sum.split_once('.').unwrap_or((sum, "0"));
            whole.parse::<i64>().unwrap() * 10 + tenth.parse::<i64>().unwrap()
        };
        assert_eq!((lines.iter().map(tenths).sum::<i64>() + 9) / 10, nano, "{}", file.display());
        assert_eq!(price(case["price"].as_str().unwrap()).charge(&expected), Usd(nano), "{}", file.display());
    }
}

#[test]
fn what_a_tariff_has_no_rates_for_costs_what_it_ordinarily_does() {
    let price = price(
        "input = \"1.00\"\noutput = \"2.00\"\nabove = [{ input_tokens = 1000, input = \"3.00\", output = \"4.00\" }]\n\
         tiers = [{ tier = \"priority\", input_tokens = 1000, input = \"5.00\", output = \"6.00\" }]",
    );
    let cost = |tier, input| {
        let usage = Usage {
            input,
            output: 1,
            tier: tollkeeper_protocol::usage::ServiceTier::from_name(tier),
            ..Usage::default()
        };
        price.charge(&usage).0
    };
    assert_eq!((cost("priority", 10), cost("priority", 2000)), (10 * 1000 + 2000, 2000 * 5000 + 6000));
    assert_eq!((cost("flex", 10), cost("scale", 2000)), (10 * 1000 + 2000, 2000 * 3000 + 4000));
}
