-- Origin: the replaced system's implementation report, the columns it adds to extension_health, verbatim (two lists).

circuit_breaker_error_rate_threshold NUMERIC(5, 2) DEFAULT 0.5,
circuit_breaker_window_seconds INTEGER DEFAULT 60,
half_open_max_requests INTEGER DEFAULT 3,
half_open_requests_count INTEGER DEFAULT 0,

p50_latency_ms NUMERIC(10, 2),
p95_latency_ms NUMERIC(10, 2),
p99_latency_ms NUMERIC(10, 2),
latency_samples BIGINT DEFAULT 0,
latency_sum BIGINT DEFAULT 0,
latency_samples_window_start TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
