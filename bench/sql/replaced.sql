-- The tables of the replaced system, as far as a call touches them, with the same 100 extensions.
create schema replaced;
set search_path = replaced;

create table extensions (
    id varchar(255) primary key,
    type varchar(32) not null,
    subject varchar(512) not null,
    timeout_ms integer not null default 5000,
    retry integer not null default 0,
    enabled boolean not null default true
);

create table extension_versions (
    id varchar(255) not null references extensions (id) on delete cascade,
    version varchar(32) not null,
    subject varchar(512) not null,
    timeout_ms integer not null,
    retry integer not null,
    config jsonb default '{}',
    metadata jsonb default '{}',
    routing_rules jsonb default '{}',
    enabled boolean not null default true,
    created_at timestamptz default current_timestamp,
    primary key (id, version)
);
create index on extension_versions (id);
create index on extension_versions (created_at);

create table extension_instances (
    extension_id varchar(255) not null references extensions (id) on delete cascade,
    instance_id varchar(255) not null,
    subject varchar(512) not null,
    weight integer default 100,
    enabled boolean not null default true,
    health_status varchar(32) default 'unknown',
    primary key (extension_id, instance_id)
);
create index on extension_instances (extension_id);

create table extension_health (
    extension_id varchar(255) primary key references extensions (id) on delete cascade,
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
    circuit_breaker_state varchar(32) default 'closed',
    circuit_breaker_opened_at timestamptz,
    circuit_breaker_failure_threshold integer default 5,
    circuit_breaker_error_rate_threshold numeric(5, 2) default 0.5,
    circuit_breaker_window_seconds integer default 60,
    updated_at timestamptz default current_timestamp
);
create index on extension_health (circuit_breaker_state);
create index on extension_health (last_failure);
create index on extension_health (p95_latency_ms);

insert into extensions select id, type, subject, timeout_ms, retry, enabled from public.extensions;
insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
select id, version, subject, timeout_ms, retry, routing_rules from public.extension_versions;
insert into extension_instances (extension_id, instance_id, subject, weight, health_status)
select extension_id, instance_id, subject, weight, 'healthy' from public.extension_instances;
insert into extension_health (extension_id) select id from extensions;
