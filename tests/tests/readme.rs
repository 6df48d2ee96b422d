//! The SQL of the README and of docs/preview.md runs as written, and shows what they say.

use std::fmt::Write as _;

use ext_registry_tests::pages::typed;
use ext_registry_tests::{Postgres, places};

/// Blocks of SQL in a document, each with the output shown right behind it.
fn blocks(file: &str) -> Vec<(String, Option<String>)> {
    let text = std::fs::read_to_string(places::root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    text.split("```sql\n")
        .skip(1)
        .map(|rest| {
            let (block, rest) = rest.split_once("```").expect("a block ends");
            let shown = rest
                .strip_prefix("\n```text\n")
                .map(|rest| rest.split_once("```").expect("a block ends").0.to_owned());
            (block.to_owned(), shown)
        })
        .collect()
}

#[tokio::test]
async fn first_steps_in_psql() {
    let blocks = blocks("README.md");
    let [(steps, None)] = &blocks[..] else {
        panic!("one block, not {}", blocks.len())
    };

    let database = Postgres::shared().database_without_extension();
    let printed = typed(&database, steps, &["-At"]);
    assert!(
        printed.contains("v2||beamline.ext.pre.normalize_text.v2|"),
        "the decision for premium: {printed}"
    );
    assert!(
        printed.contains("normalize_text|open|5|"),
        "the health after five timeouts: {printed}"
    );
    assert!(
        printed.contains("v2|beamline.ext.pre.normalize_text.v2|ok"),
        "the preview for basic: {printed}"
    );
    let session = database.connect().await;
    assert_eq!(session.breaker("normalize_text").await, "closed", "after the reset");
    assert_eq!(session.select_for("normalize_text", "basic").await.version(), "v1");
}

#[test]
fn replay_before_you_commit() {
    let blocks = blocks("docs/preview.md");
    assert!(blocks.iter().filter(|(_, shown)| shown.is_some()).count() > 3);
    // One session for all, as a reader has it.
    let mut script = String::new();
    for (block, _) in &blocks {
        writeln!(script, "{block}\n\\echo == end of block").expect("writing to a string");
    }
    let database = Postgres::shared().database();
    let printed = typed(&database, &script, &["-q"]);
    for ((block, shown), printed) in blocks.iter().zip(printed.split("== end of block\n")) {
        let lines = |text: &str| {
            text.trim()
                .lines()
                .map(|line| line.trim_end().to_owned())
                .collect::<Vec<_>>()
        };
        if let Some(shown) = shown {
            assert_eq!(lines(shown), lines(printed), "of\n{block}\n{printed}");
        }
    }
}

/// All Rust sources of a test: its file, or those of its folder.
fn sources(test: &str) -> String {
    let folder = places::root().join("tests/tests").join(test);
    let files = match std::fs::read_dir(&folder) {
        Ok(entries) => entries.map(|entry| entry.expect("a readable folder").path()).collect(),
        Err(_) => vec![folder.with_extension("rs")],
    };
    let read = |file: std::path::PathBuf| {
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    files.into_iter().map(read).collect()
}

#[test]
fn every_guarantee_is_shown_by_a_test_that_exists() {
    let page = std::fs::read_to_string(places::root().join("docs/guarantees.md")).expect("docs/guarantees.md");
    let mut count = 0;
    for row in page
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("::"))
    {
        let name = row.trim_end_matches(" |").rsplit(" | ").next().expect("a last cell");
        let (file, test) = name.split_once("::").unwrap_or_else(|| panic!("{row}"));
        assert!(sources(file).contains(&format!("fn {test}(")), "there is no {name}");
        count += 1;
    }
    assert!(count > 25, "{count} rows");
}
