//! docs/runbook.md: every block of SQL runs in the state that its chapter is about, and prints what is shown behind it.
//! sql/psqlrc: every short name runs, too.
//!
//! `RUNBOOK=accept cargo test -p ext_registry_tests --test runbook` writes what is shown anew; read the diff before committing it.

use std::collections::HashSet;
use std::fmt::Write as _;

use ext_registry_tests::pages::{difference, typed};
use ext_registry_tests::registry::fixtures;
use ext_registry_tests::{Database, Postgres, places};

const SQL: &str = "```sql\n";
const SHOWN: &str = "```\n```text\n";
const END: &str = "```\n";

/// What brings a database into a state of the runbook.
fn setup(state: &str) -> String {
    let calm = "select ext_report('normalize_text', 'success', 10 + n % 5) from generate_series(1, 95) n;";
    let instances = "insert into extension_instances (extension_id, instance_id, subject) values
        ('normalize_text', 'a', 'beamline.ext.pre.normalize_text.a'), ('normalize_text', 'b', 'beamline.ext.pre.normalize_text.b');";
    let v2 = "insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules) values
        ('normalize_text', 'v2', 'beamline.ext.pre.normalize_text.v2', 150, 1, '{\"tenant_id\": [\"premium_tenant\"]}');";
    match state {
        "calm" => calm.to_owned(),
        // Not in a row, and with a breaker that does not mind: the alert is there because calls are not refused.
        "errors" => format!(
            "{instances} update extension_health set circuit_breaker_failure_threshold = null where extension_id = 'normalize_text';
            select ext_report('normalize_text', 'success', 10, 'v1', 'a') from generate_series(1, 60);
            select ext_report('normalize_text', case when n % 4 = 0 then 'success' else 'error' end, 10, 'v1', 'b')
            from generate_series(1, 50) n;"
        ),
        "open" => "select ext_report('normalize_text', 'timeout', 100) from generate_series(1, 5);".to_owned(),
        "slow" => format!(
            "{instances} update extensions set timeout_ms = 400 where id = 'normalize_text';
            select ext_report('normalize_text', 'success', 150 + n, 'v1', case n % 2 when 0 then 'a' else 'b' end)
            from generate_series(1, 100) n;"
        ),
        "missing" => "delete from extensions where id = 'normalize_text';".to_owned(),
        "rolled out" => format!("{calm} {v2}"),
        // Calls of both, of which the newer one fails more often.
        "two versions" => format!(
            "{calm} {v2} update extension_versions set routing_rules = '{{}}', rollout_percent = 50 where version = 'v2';
            select ext_report('normalize_text', 'success', 10 + n % 5, 'v1') from generate_series(1, 205) n;
            select ext_report('normalize_text', case when n % 20 = 0 then 'error' else 'success' end, 12 + n % 5, 'v2')
            from generate_series(1, 240) n;"
        ),
        "instances" => format!("{calm} {instances}"),
        other => panic!("the runbook names the state {other:?}, which nobody knows"),
    }
}

/// What psql prints for a script, without what its statements say as a notice.
fn quietly(database: &Database<'_>, script: &str) -> String {
    typed(
        database,
        &format!("set client_min_messages = warning;\n{script}"),
        &["-q"],
    )
}

/// A new database with the fixtures, in that state. (Each statement in a transaction of its own: settings count once committed.)
fn in_state(state: &str) -> Database<'static> {
    let database = Postgres::shared().database();
    let documents = fixtures().to_string().replace('\'', "''");
    quietly(
        &database,
        &format!("select ext_import('{documents}'); {}", setup(state)),
    );
    database
}

/// Trailing blanks and empty lines say nothing.
fn tidy(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("\n") + "\n"
}

/// The chapter as it should be, with what its blocks print.
fn executed(chapter: &str) -> String {
    let state = chapter
        .split_once("<!-- state: ")
        .and_then(|(_, rest)| rest.split_once(" -->"))
        .unwrap_or_else(|| panic!("no state in the chapter\n{chapter}"))
        .0;
    let database = in_state(state);
    let mut whole = String::new();
    let mut rest = chapter;
    while let Some(at) = rest.find(SQL) {
        let (before, block) = rest.split_at(at + SQL.len());
        let (block, after) = block.split_at(block.find(END).expect("a block ends"));
        let printed = tidy(&quietly(&database, block));
        whole += before;
        whole += block;
        rest = if let Some(shown) = after.strip_prefix(SHOWN) {
            whole = whole + SHOWN + &printed;
            &shown[shown.find(END).expect("a block ends")..]
        } else {
            after
        };
        // The end of this block, or of what is shown.
        whole += END;
        rest = &rest[END.len()..];
    }
    whole + rest
}

#[test]
fn every_block_runs_and_prints_what_is_shown() {
    let file = places::root().join("docs/runbook.md");
    let page = std::fs::read_to_string(&file).expect("docs/runbook.md");
    let (head, _) = page.split_once("\n## ").expect("a runbook has chapters");
    let mut whole = head.to_owned();
    let mut chapters = 0;
    for chapter in page[head.len()..].split("\n## ").skip(1) {
        write!(whole, "\n## {}", executed(chapter)).expect("writing to a string");
        chapters += 1;
    }
    assert!(chapters > 10, "{chapters} chapters");
    if std::env::var_os("RUNBOOK").is_some_and(|value| value == "accept") {
        std::fs::write(&file, &whole).expect("docs/runbook.md can be written");
    } else if let Some(difference) = difference("docs/runbook.md", &page, &whole) {
        panic!("{difference}");
    }
}

#[test]
fn every_alert_leads_to_a_chapter() {
    let rules = std::fs::read_to_string(places::root().join("deploy/prometheus/rules.yml")).expect("rules.yml");
    let page = std::fs::read_to_string(places::root().join("docs/runbook.md")).expect("docs/runbook.md");
    let chapters: HashSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|title| title.to_lowercase().replace(' ', "-").replace(',', ""))
        .collect();
    let named: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.split_once("runbook_url:")?.1.split_once("runbook.md#"))
        .map(|(_, chapter)| chapter.trim_end_matches('"'))
        .collect();
    assert_eq!(
        named.len(),
        rules.matches("- alert: ").count(),
        "each alert names one: {named:?}"
    );
    for chapter in named {
        assert!(chapters.contains(chapter), "no chapter {chapter} among {chapters:?}");
    }
}

#[test]
fn every_short_name_of_psqlrc_runs_and_fits() {
    let rc = places::root().join("sql/psqlrc");
    let text = std::fs::read_to_string(&rc).expect("sql/psqlrc");
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("\\set ")?.split(' ').next())
        .collect();
    assert!(names.len() >= 9, "{names:?}");
    let database = in_state("errors");
    database.run("select ext_report('pii_guard', 'timeout', 100) from generate_series(1, 5)");
    // As long as ids with a name of their owner are, with an open breaker and some traffic.
    database.run("update extensions set id = 'beamline-pre-normalize_text' where id = 'normalize_text'");
    database.run(
        "select ext_report('beamline-pre-normalize_text', o, 1234.5, null, i.instance_id)
         from generate_series(1, 20000) n, unnest(array['success', 'timeout']) o,
             (select instance_id from extension_instances where extension_id = 'beamline-pre-normalize_text' limit 1) i",
    );
    for name in names {
        let printed = quietly(&database, &format!("\\i {}\n:{name}\n", rc.display()));
        let (announced, table) = printed.split_once('\n').expect("a first line");
        assert!(announced.contains(&format!(":{name}")), "{announced}");
        assert!(table.lines().count() > 1, ":{name} prints {table}");
        let is_narrow = |line: &str| line.chars().count() <= 100;
        // What lists reasons or statements in full may be wider.
        assert!(
            ["advice", "changes", "events", "status"].contains(&name) || table.lines().all(is_narrow),
            ":{name} is wider than 100 columns:\n{table}"
        );
    }
}
