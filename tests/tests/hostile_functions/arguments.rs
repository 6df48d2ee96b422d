//! Hostile values for every type that a function of the extension takes.

use serde_json::{Value, json};

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn strings() -> Vec<String> {
    let mut strings: Vec<String> = [
        "",
        " ",
        "x",
        "v1",
        "success",
        "viewer",
        "closed",
        "a\nb\tc\rd\u{7}e",
        "\u{ffff}",
        "\u{1F980}\u{202e}\u{0301}",
        "\\",
        "\\x00\\",
        "%s %n %1$s {} {0} :x $1 \"q\" `'",
        "'; drop table extensions; --",
        "NaN",
        "-",
        "..",
        "$SYS.>",
        "HISTFAAAA",
    ]
    .map(str::to_owned)
    .to_vec();
    strings.push("x".repeat(1_000_000));
    strings.push("\u{1F980}".repeat(250_000));
    strings.push("[".repeat(100_000));
    strings.push("9".repeat(400));
    strings
}

fn documents() -> Vec<String> {
    let mut documents: Vec<String> = [
        "{}",
        "[]",
        "null",
        "true",
        "1e400",
        "-1e-400",
        "\"\\uffff\"",
        r#"{"": null}"#,
        r#"{"a": 1e400, "b": -123456789012345678901234567890.5, "c": 0.1, "d": 1e-300}"#,
        r#"{"tenant_id": ["t"], "a.b.c": null, "..": 1}"#,
        r#"{"a": {"regex": "(((((x{1000}){1000}){1000})))"}}"#,
        r#"{"a": {"regex": "(?i)\\p{L}+(", "in": []}}"#,
        r#"{"a": {"semver": "99999999999999999999.0.0"}}"#,
        r#"{"a": {"gt": "x", "unheard_of": {}}}"#,
        r#"{"id": "x", "type": "pre", "subject": "s"}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "timeout_ms": 1e400}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "timeout_ms": 99999999999999999999}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "retry": -1.5, "enabled": "maybe"}"#,
        r#"{"id": "\\", "type": "'", "subject": "\uffff"}"#,
        r#"{"id": {}, "type": [], "subject": null}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "config": null, "metadata": {"allowed_tenants": [1, null, {}]}}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "versions": [null], "instances": [[]], "health": []}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "versions": [{}, 1], "instances": [{"instance_id": 7}]}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "versions": [{"version": "v1", "subject": "s", "rollout_percent": 1e400}]}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "instances": [{"instance_id": "i", "subject": "s", "weight": 1e10}]}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "health": {"slow_call_ms": 1e400, "breaker_mode": 1}}"#,
        r#"{"extensions": [1, null, []], "policies": [{}]}"#,
        r#"{"extensions": {}, "policies": [{"tenant_id": null, "policy_id": {}, "document": 1}]}"#,
        r#"{"policies": [{"tenant_id": "t", "policy_id": "p", "document": {"pre": [1], "providers": {}}}]}"#,
        r#"{"pre": [{"id": "x"}], "validators": [{"id": ""}], "providers": [{"name": 1, "weight": 1e400}]}"#,
        r#"[["a", null, 1, {}], null, {}, 7]"#,
    ]
    .map(str::to_owned)
    .to_vec();
    documents.push(format!("{}{}", "[".repeat(1000), "]".repeat(1000)));
    documents.push(format!("{}1{}", "{\"a\":".repeat(1000), "}".repeat(1000)));
    documents.push(format!(
        "{{\"id\": \"x\", \"config\": {}{}}}",
        "[".repeat(300),
        "]".repeat(300)
    ));
    documents.push(json!({ "id": "x".repeat(1_000_000), "type": "pre", "subject": "s" }).to_string());
    let wide: serde_json::Map<String, Value> = (0..5000).map(|n| (format!("k{n}"), json!(n))).collect();
    documents.push(Value::Object(wide).to_string());
    documents
}

/// Values of a type as SQL expressions, the harmless ones first.
pub fn values(kind: &str, hdr: &[String]) -> Vec<String> {
    if let Some(element) = kind.strip_suffix("[]") {
        let elements = values(element, hdr);
        let (good, other) = (&elements[0], &elements[elements.len() / 2]);
        let mut arrays = vec![
            format!("array[{good}]"),
            format!("null::{kind}"),
            format!("'{{}}'::{kind}"),
            format!("array[null]::{kind}"),
            format!("array[{good}, null, {other}]"),
            format!("array[[{good}, {good}], [{other}, null]]"),
            format!("array_fill({good}, array[1000])"),
            format!("array_fill(null::{element}, array[10000])"),
            format!("array_fill({good}, array[2], array[-5])"),
            format!("array_fill({good}, array[1, 1, 1, 1, 1, 1])"),
        ];
        arrays.extend(
            elements
                .iter()
                .filter(|value| value.len() < 10_000)
                .map(|value| format!("array[{value}]")),
        );
        return arrays;
    }
    let typed = |values: &[&str]| {
        values
            .iter()
            .map(|value| format!("{value}::{kind}"))
            .collect::<Vec<_>>()
    };
    let mut found = match kind {
        "text" | "name" | "cstring" | "character varying" => strings()
            .iter()
            .map(|text| format!("{}::{kind}", quoted(text)))
            .collect(),
        "jsonb" => documents()
            .iter()
            .map(|text| format!("{}::{kind}", quoted(text)))
            .collect(),
        "boolean" => typed(&["true", "false"]),
        "smallint" => typed(&["1", "0", "'-32768'", "32767"]),
        "integer" => typed(&["1", "0", "'-1'", "'-2147483648'", "2147483647"]),
        "bigint" => typed(&[
            "1",
            "0",
            "'-1'",
            "'-9223372036854775808'",
            "9223372036854775807",
            "281474976710657",
        ]),
        "double precision" => typed(&[
            "1",
            "0",
            "'-0'",
            "0.95",
            "1.0000001",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "1e308",
            "'-1e308'",
            "5e-324",
            "300000",
            "300000.0001",
            "9007199254740993",
        ]),
        "numeric" => typed(&["1", "0", "'NaN'", "'Infinity'", "1e1000", "'-1e-1000'"]),
        "uuid" => typed(&[
            "gen_random_uuid()",
            "'00000000-0000-0000-0000-000000000000'",
            "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
        ]),
        "_ext_reviewed" => typed(&[
            "row('versions[0]', 'version', 'x', 'v1', '{}', '{}', null, null)",
            "row('', 'policy', null, 't/p', null, '{\"enabled\": true, \"document\": 1}', 'problem', 'hint')",
            "row(null, null, null, null, '[]', '5', null, null)",
        ]),
        "regclass" => typed(&[
            "'extensions'",
            "'extension_health'",
            "'extensions_pkey'",
            "0::oid",
            "4294967295::oid",
        ]),
        "regrole" => typed(&["'bridge'", "0::oid", "4294967295::oid", "'pg_monitor'"]),
        "timestamp with time zone" => typed(&[
            "now()",
            "'infinity'",
            "'-infinity'",
            "'4714-11-24 BC'",
            "'294276-12-31'",
        ]),
        "interval" => typed(&[
            "'5 min'",
            "'0'",
            "'-1 s'",
            "'178000000 years'",
            "'-178000000 years'",
            "'0.000001 s'",
            "'1 mon -30 days'",
            "'1 day -24:00:00.000001'",
            "'100 years'",
        ]),
        // What was measured, nothing, as much as can be counted, and that twice.
        "hdr" => hdr
            .iter()
            .map(String::as_str)
            .chain([
                "HISTFAAAAB94nJNpmSzMwMDAyAABTFAazBd8uJjB/gNUBABPBQQP",
                "HISTFAAAACV4nJNpmSzMwMAgxAABTFCaEUQIPlzMYP8BIvDvPxTAGQBBsBYM",
                "HISTFAAAACZ4nJNpmSzMwMDDywABTFCaEUQIPlzMYP8BIjBfnom5AQYAohwJXg==",
            ])
            .map(|text| format!("{}::hdr", quoted(text)))
            .collect(),
        other => panic!("no values for arguments of type {other}: add some"),
    };
    found.push(format!("null::{kind}"));
    found
}
