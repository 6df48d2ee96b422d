-- Origin: the replaced system's operations runbook, its SQL statements in the order they stand there, verbatim. Left out is
-- one line that is not SQL: `INSERT INTO extension_versions (id, version, subject, ...) VALUES (...);`

-- Disable extension
UPDATE extensions SET enabled = FALSE WHERE id = 'normalize_text';

-- Enable extension
UPDATE extensions SET enabled = TRUE WHERE id = 'normalize_text';

-- Update timeout
UPDATE extensions SET timeout_ms = 200 WHERE id = 'normalize_text';

-- Update retry count
UPDATE extensions SET retry = 1 WHERE id = 'normalize_text';

-- Update config
UPDATE extensions SET config = '{"max_length": 1000}'::jsonb WHERE id = 'normalize_text';

-- Insert new version
INSERT INTO extension_versions (
    id, version, subject, timeout_ms, retry, config, metadata, routing_rules
) VALUES (
    'normalize_text',
    'v2',
    'beamline.ext.pre.normalize_text.v2',
    150,  -- Increased timeout
    1,    -- Added retry
    '{"max_length": 2000}'::jsonb,
    '{"description": "Normalize text v2 with improved handling"}'::jsonb,
    '{"tenant_id": ["premium_tenant"]}'::jsonb  -- Routing rules
);

-- Update routing rules to include more tenants
UPDATE extension_versions
SET routing_rules = '{"tenant_id": ["premium_tenant", "standard_tenant"]}'::jsonb
WHERE id = 'normalize_text' AND version = 'v2';

-- Make v2 default (remove routing rules or set to all tenants)
UPDATE extension_versions
SET routing_rules = '{}'::jsonb  -- Empty = default for all
WHERE id = 'normalize_text' AND version = 'v2';

-- Remove new version from routing (fallback to v1)
UPDATE extension_versions
SET routing_rules = '{"tenant_id": []}'::jsonb  -- Empty list = no match
WHERE id = 'normalize_text' AND version = 'v2';

-- Disable extension version (if needed)
UPDATE extensions
SET enabled = FALSE
WHERE id = 'normalize_text' AND version = 'v2';

UPDATE extensions SET enabled = FALSE WHERE id = 'normalize_text';

UPDATE extensions SET enabled = TRUE WHERE id = 'normalize_text';

SELECT * FROM extensions WHERE id = 'normalize_text';

UPDATE extensions SET timeout_ms = 200 WHERE id = 'normalize_text';

UPDATE extension_health
SET circuit_breaker_state = 'closed',
    circuit_breaker_opened_at = NULL
WHERE extension_id = 'normalize_text';

UPDATE extensions SET timeout_ms = 300 WHERE id = 'normalize_text';

-- Disable extension
UPDATE extensions SET enabled = FALSE WHERE id = 'normalize_text';

-- Update timeout
UPDATE extensions SET timeout_ms = 200 WHERE id = 'normalize_text';

-- Check extension health
SELECT * FROM extension_health WHERE extension_id = 'normalize_text';
