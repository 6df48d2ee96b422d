-- The replaced system's tables, with all their columns, checks and indexes, and the rows of registry.sql. What it did with
-- them for one call is pgbench/eleven.sql. For psql, with the variable `extensions`.
create schema eleven;
set search_path = eleven;

create table extensions (
    id varchar(255) primary key,
    type varchar(32) not null check (type in ('pre', 'validator', 'post', 'provider')),
    subject varchar(512) not null,
    timeout_ms integer not null default 5000 check (timeout_ms > 0),
    retry integer not null default 0 check (retry >= 0),
    enabled boolean not null default true,
    version varchar(32) not null default 'v1',
    config jsonb default '{}',
    metadata jsonb default '{}',
    created_at timestamptz default current_timestamp,
    updated_at timestamptz default current_timestamp,
    created_by varchar(255),
    updated_by varchar(255)
);
create index on extensions (type);
create index on extensions (enabled) where enabled;
create index on extensions (subject);
create index on extensions (updated_at);

create table extension_versions (
    id varchar(255) not null references extensions on delete cascade,
    version varchar(32) not null,
    subject varchar(512) not null,
    timeout_ms integer not null,
    retry integer not null,
    config jsonb default '{}',
    metadata jsonb default '{}',
    routing_rules jsonb default '{}',
    enabled boolean not null default true,
    created_at timestamptz default current_timestamp,
    created_by varchar(255),
    primary key (id, version)
);
create index on extension_versions (id);
create index on extension_versions (created_at);

create table extension_instances (
    extension_id varchar(255) not null references extensions on delete cascade,
    instance_id varchar(255) not null,
    subject varchar(512) not null,
    weight integer default 100 check (weight between 0 and 100),
    enabled boolean not null default true,
    health_status varchar(32) default 'unknown'
        check (health_status in ('healthy', 'degraded', 'unhealthy', 'unknown')),
    last_health_check timestamptz,
    created_at timestamptz default current_timestamp,
    updated_at timestamptz default current_timestamp,
    primary key (extension_id, instance_id)
);
create index on extension_instances (extension_id);
create index on extension_instances (extension_id, enabled) where enabled;
create index on extension_instances (extension_id, health_status);

create table extension_health (
    extension_id varchar(255) primary key references extensions on delete cascade,
    last_success timestamptz,
    last_failure timestamptz,
    success_count bigint default 0,
    failure_count bigint default 0,
    avg_latency_ms numeric(10, 2),
    p50_latency_ms numeric(10, 2),
    p95_latency_ms numeric(10, 2),
    p99_latency_ms numeric(10, 2),
    last_latency_ms integer,
    latency_samples bigint default 0,
    latency_sum bigint default 0,
    latency_samples_window_start timestamptz default current_timestamp,
    circuit_breaker_state varchar(32) default 'closed' check (circuit_breaker_state in ('closed', 'open', 'half_open')),
    circuit_breaker_opened_at timestamptz,
    circuit_breaker_failure_threshold integer default 5,
    circuit_breaker_error_rate_threshold numeric(5, 2) default 0.5
        check (circuit_breaker_error_rate_threshold between 0 and 1),
    circuit_breaker_window_seconds integer default 60,
    half_open_max_requests integer default 3,
    half_open_requests_count integer default 0,
    updated_at timestamptz default current_timestamp
);
create index on extension_health (circuit_breaker_state);
create index on extension_health (last_failure);
create index on extension_health (p95_latency_ms);

insert into extensions (id, type, subject)
select n, 'pre', format('bench.service.%s', n) from generate_series(1, :extensions) n;

insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules, created_at)
select n, v.version, format('bench.service.%s.%s', n, v.version), 5000, 0, v.rules::jsonb, current_timestamp + v.age
from generate_series(1, :extensions) n,
    (values ('v1', '{}', interval '0'), ('v2', '{"tenant_id": ["t1", "t2", "t3"]}', interval '1 s')) v (version, rules, age);

insert into extension_instances (extension_id, instance_id, subject, weight, health_status)
select n, i.instance_id, format('bench.service.%s.%s', n, i.instance_id), i.weight, 'healthy'
from generate_series(1, :extensions) n, (values ('a', 67), ('b', 33)) i (instance_id, weight);

-- As after a first call.
insert into extension_health (
    extension_id, avg_latency_ms, p50_latency_ms, p95_latency_ms, p99_latency_ms, latency_samples, latency_sum
)
select n, 12, 12, 12, 12, 1, 12 from generate_series(1, :extensions) n;

vacuum analyze;
