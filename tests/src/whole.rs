//! A registry with something of everything, and what must be the same after it was dumped, restored or upgraded.

use crate::Postgres;
use crate::postgres::must_succeed;
use crate::registry::fixtures;

/// A registry with something of everything that a DBA owns, and grants to `role`.
pub fn fill(cluster: &Postgres, database: &str, role: &str) {
    let documents = fixtures().to_string().replace('\'', "''");
    must_succeed(&cluster.psql(database, &format!("select * from ext_import('{documents}')")));
    must_succeed(&cluster.psql(
        database,
        &format!(
            r#"insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules, rollout_percent)
           values ('normalize_text', 'v2', 'svc.v2', 80, 1, '{{"tenant_id": ["t1"]}}', 100),
                  ('normalize_text', 'v10', 'svc.v10', 90, 0, '{{"environment": "stage"}}', 50);
           insert into extension_instances (extension_id, instance_id, subject, weight, health_status)
           values ('pii_guard', 'a', 'svc.a', 67, 'healthy'), ('pii_guard', 'b', 'svc.b', 33, 'degraded');
           update extension_health set circuit_breaker_failure_threshold = 7 where extension_id = 'mask_pii';
           update extensions set enabled = false where id = 'test_provider';
           create role {role} login;
           select ext_grant('{role}', 'operator')"#
        ),
    ));
}

/// What must be the same afterwards: documents, decisions, the log, grants.
pub fn state(cluster: &Postgres, database: &str, role: &str) -> String {
    let output = cluster.psql(database, &format!(
        r"select ext_export() - 'exported_at';
           select extension_id, version, instance_id, subject, timeout_ms, retry, allowed, reason
           from ext_preview(
               (select array_agg(id order by n, id) from extensions, generate_series(1, 12) n),
               (select array_agg(jsonb_build_object('tenant_id', 't' || n % 3, 'environment', (array['prod', 'stage'])[n % 2 + 1])
                   order by n, id) from extensions, generate_series(1, 12) n));
           select count(*), max(changed_at) from extension_audit_log;
           select has_column_privilege('{role}', 'extensions', 'config', 'update'),
               has_function_privilege('{role}', 'ext_select(text, jsonb, text[])', 'execute');
           select * from extension_health_settings order by 1;
           select id, created_at, updated_at, uid from extensions order by 1"
    ));
    must_succeed(&output);
    String::from_utf8(output.stdout).expect("the client encoding is UTF-8")
}
