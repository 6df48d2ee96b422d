//! docs/sql-reference.md is what the database says of itself (its comments), docs/bridge-reference.md what `ext-bridge --help`
//! says. Both are generated: a comment that is missing, or a page that is behind, fails.
//!
//! `REFERENCE=accept cargo test -p ext_registry_tests --test reference` writes them anew.

use std::fmt::Write as _;
use std::process::Command;

use ext_registry_tests::pages::difference;
use ext_registry_tests::{Database, Postgres, places};

/// Compares a page with what it should be, or writes it.
fn is_up_to_date(file: &str, text: &str) {
    let path = places::root().join("docs").join(file);
    if std::env::var_os("REFERENCE").is_some_and(|value| value == "accept") {
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    if let Some(difference) = difference(file, &page, text) {
        panic!("it is behind; see the head of this test\n{difference}");
    }
}

/// Rows of a query, with cells that fit a Markdown table.
fn rows(database: &Database<'_>, query: &str) -> Vec<Vec<String>> {
    let text = database.run(query);
    let row = |line: &str| {
        line.split('\u{1f}')
            .map(|cell| cell.replace('|', "\\|"))
            .collect::<Vec<_>>()
    };
    text.lines().filter(|line| !line.is_empty()).map(row).collect()
}

/// One row of a table; every cell says something.
fn table_row(page: &mut String, cells: &[String]) {
    assert!(
        cells.last().is_some_and(|cell| !cell.is_empty()),
        "no comment on {cells:?}"
    );
    writeln!(page, "| {} |", cells.join(" | ")).expect("writing to a string");
}

const HEAD: &str = "# SQL reference

Generated from the comments in the database (`\\df+ ext_*`, `\\d+ extension_health`), which say the same there. Names that begin with `_`
are internal. Latencies are in ms; every function takes named arguments. Which role may call what: `ext_grant`.

## Functions

| function | returns | what it does |
|---|---|---|
";

#[test]
fn the_sql_reference_is_what_the_database_says() {
    let database = Postgres::shared().database();
    let member = |catalogue: &str, oid: &str| {
        format!(
            "exists (select from pg_depend d join pg_extension x on x.oid = d.refobjid and x.extname = 'ext_registry'
                where d.classid = '{catalogue}'::regclass and d.objid = {oid} and d.deptype = 'e')"
        )
    };
    let mut page = HEAD.to_owned();
    let functions = rows(
        &database,
        &format!(
            r"select concat_ws(E'\x1f', format('`%s(%s)`', p.proname, pg_get_function_arguments(p.oid)),
                case when p.prokind = 'p' then 'procedure' else format('`%s`', pg_get_function_result(p.oid)) end,
                coalesce(obj_description(p.oid, 'pg_proc'), ''))
            from pg_proc p
            where p.proname ~ '^(ext|hdr)_' and p.prorettype not in ('trigger'::regtype)
                and p.proname not in ('hdr_in', 'hdr_out', 'hdr_recv', 'hdr_send') and p.proargtypes::text !~ '2281'
                and {}
            order by p.proname, p.oid::regprocedure::text",
            member("pg_proc", "p.oid")
        ),
    );
    assert!(functions.len() > 30, "{} functions", functions.len());
    for row in &functions {
        table_row(&mut page, row);
    }

    page += "\n## Settings\n\nIn `postgresql.conf`, or by `alter system`, `alter database`, `set` where the last column allows it.\n\n| setting | default | unit | range | what | when |\n|---|---|---|---|---|---|\n";
    let settings = rows(
        &database,
        r"select concat_ws(E'\x1f', format('`%s`', name), format('`%s`', boot_val), coalesce(unit, ''),
            coalesce(min_val || ' .. ' || max_val, array_to_string(enumvals, ', '), ''),
            short_desc || coalesce(' ' || extra_desc, ''), context)
        from pg_settings where name like 'ext\_registry.%' order by name",
    );
    assert!(settings.len() > 3, "{} settings", settings.len());
    for row in &settings {
        table_row(&mut page, row);
    }

    page += "\n## Tables and views\n";
    let relations = rows(
        &database,
        &format!(
            r"select concat_ws(E'\x1f', c.relname, case c.relkind when 'v' then 'view' else 'table' end, coalesce(obj_description(c.oid, 'pg_class'), ''))
            from pg_class c where c.relkind in ('r', 'v') and c.relname !~ '^_' and {} order by c.relname",
            member("pg_class", "c.oid")
        ),
    );
    assert!(relations.len() > 10, "{} relations", relations.len());
    for relation in &relations {
        let [name, kind, comment] = &relation[..] else {
            panic!("{relation:?}")
        };
        assert!(!comment.is_empty(), "no comment on {name}");
        write!(
            page,
            "\n### {name}\n\n{comment} (A {kind}.)\n\n| column | type | default | what |\n|---|---|---|---|\n"
        )
        .expect("writing to a string");
        let columns = rows(
            &database,
            &format!(
                r"select concat_ws(E'\x1f', format('`%s`', a.attname), format_type(a.atttypid, a.atttypmod) || case when a.attnotnull then ' not null' else '' end,
                    coalesce('`' || replace(pg_get_expr(d.adbin, d.adrelid), chr(10), ' ') || '`', ''),
                    coalesce(col_description(a.attrelid, a.attnum), ''))
                from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
                where a.attrelid = '{name}'::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum"
            ),
        );
        for row in &columns {
            table_row(&mut page, row);
        }
    }
    is_up_to_date("sql-reference.md", &page);
}

#[test]
fn the_bridge_reference_is_what_help_says() {
    let help = |arguments: &[&str]| {
        let output = Command::new(places::built("ext-bridge", "bridge"))
            .args(arguments)
            .env("COLUMNS", "100")
            .output()
            .expect("ext-bridge can be started");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.lines()
            .map(|line| line.trim_end().to_owned() + "\n")
            .collect::<String>()
    };
    let mut page = "# Reference of ext-bridge\n\nGenerated from `--help`. Signals, exit codes and the settings file: [daemon.md](daemon.md).\n".to_owned();
    let commands: [&[&str]; 7] = [
        &["--help"],
        &["serve", "--help"],
        &["invoke", "--help"],
        &["route", "--help"],
        &["check", "--help"],
        &["fixtures", "--help"],
        &["completions", "--help"],
    ];
    let general = help(commands[0]);
    for command in commands {
        let mut text = help(command);
        assert!(text.contains("Usage: "), "{text}");
        // What every command takes is said once.
        if command.len() > 1
            && let Some((own, options)) = text.split_once("Options:\n")
        {
            let particular: String = options
                .split_inclusive('\n')
                .filter(|line| !general.contains(line.trim()))
                .collect();
            text = format!("{own}Options: those of ext-bridge, and\n{particular}");
        }
        write!(page, "\n## ext-bridge {}\n\n```\n{text}```\n", command.join(" ")).expect("writing to a string");
    }
    is_up_to_date("bridge-reference.md", &page);
}
