-- A pipeline of one extension for each of its four stages, beside the registry that is measured.
insert into extensions (id, type, subject, timeout_ms)
select 'stage_' || type, type, 'bench.service.stage.' || type, 5000
from unnest(array['pre', 'validator', 'provider', 'post']) type;

insert into extension_policies (tenant_id, policy_id, document)
values ('t2', 'stages', '{
    "pre": [{"id": "stage_pre"}],
    "validators": [{"id": "stage_validator"}],
    "providers": ["stage_provider"],
    "post": [{"id": "stage_post"}]
}');
