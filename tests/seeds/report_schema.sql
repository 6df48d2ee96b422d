-- Origin: the replaced system's implementation report, its statements that make tables, verbatim.

CREATE TABLE extension_versions (
    id VARCHAR(255) NOT NULL,
    version VARCHAR(32) NOT NULL,
    subject VARCHAR(512) NOT NULL,
    timeout_ms INTEGER NOT NULL,
    retry INTEGER NOT NULL,
    config JSONB DEFAULT '{}'::jsonb,
    metadata JSONB DEFAULT '{}'::jsonb,
    routing_rules JSONB DEFAULT '{}'::jsonb,
    enabled BOOLEAN NOT NULL DEFAULT TRUE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (id, version)
);

CREATE TABLE extension_instances (
    extension_id VARCHAR(255) NOT NULL,
    instance_id VARCHAR(255) NOT NULL,
    subject VARCHAR(512) NOT NULL,
    weight INTEGER DEFAULT 100 CHECK (weight >= 0 AND weight <= 100),
    enabled BOOLEAN NOT NULL DEFAULT TRUE,
    health_status VARCHAR(32) DEFAULT 'unknown' CHECK (health_status IN ('healthy', 'degraded', 'unhealthy', 'unknown')),
    last_health_check TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (extension_id, instance_id)
);
