-- Origin: the replaced system's implementation report, its usage examples, verbatim.

-- Create extension with multiple versions
INSERT INTO extension_versions (id, version, subject, timeout_ms, retry, routing_rules) VALUES
    ('normalize_text', 'v1', 'beamline.ext.pre.normalize_text.v1', 100, 0, '{}'),
    ('normalize_text', 'v2', 'beamline.ext.pre.normalize_text.v2', 80, 0, '{"tenant_id": ["tenant1", "tenant2"]}');

-- Create extension with multiple instances
INSERT INTO extension_instances (extension_id, instance_id, subject, weight, health_status) VALUES
    ('normalize_text', 'instance-1', 'beamline.ext.pre.normalize_text.v1', 100, 'healthy'),
    ('normalize_text', 'instance-2', 'beamline.ext.pre.normalize_text.v1', 50, 'healthy');
