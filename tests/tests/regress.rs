//! SQL regress tests: each `regress/sql/NAME.sql` runs by psql in a fresh database with the extension, and what psql
//! prints must be `regress/expected/NAME.out`.
//!
//! `REGRESS=accept cargo test -p ext_registry_tests --test regress` writes the expected files anew; read the diff before
//! committing it.

use ext_registry_tests::{Postgres, regress};

#[test]
fn sql_files_print_what_is_expected() {
    let accept = std::env::var_os("REGRESS").is_some_and(|value| value == "accept");
    let mut differences = Vec::new();
    for file in regress::files() {
        let printed = regress::print(&file, &Postgres::shared().database());
        if accept {
            std::fs::write(regress::expected(&file), &printed).expect("the expected file can be written");
        }
        differences.extend(regress::difference(&file, &printed));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
