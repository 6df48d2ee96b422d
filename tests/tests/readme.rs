//! The SQL of the README runs as written, and shows what it says.

use ext_registry_tests::{Postgres, places};

#[tokio::test]
async fn first_steps_in_psql() {
    let readme = std::fs::read_to_string(places::root().join("README.md")).expect("README.md");
    let blocks: Vec<&str> = readme
        .split("```sql\n")
        .skip(1)
        .map(|rest| rest.split("```").next().expect("a first part"))
        .collect();
    let [steps] = blocks[..] else {
        panic!("one block, not {}", blocks.len())
    };

    let database = Postgres::shared().database_without_extension();
    let printed = database.run(steps);
    assert!(
        printed.contains("v2||beamline.ext.pre.normalize_text.v2|"),
        "the decision for premium: {printed}"
    );
    assert!(
        printed.contains("normalize_text|open|5|"),
        "the health after five timeouts: {printed}"
    );
    let session = database.connect().await;
    assert_eq!(session.breaker("normalize_text").await, "closed", "after the reset");
    assert_eq!(session.select_for("normalize_text", "basic").await.version(), "v1");
}
