-- The strict way with PostgreSQL: an administrator makes the tables, and the service's role can use them and nothing else.
-- The service then needs create_tables = false below [sinks.postgres]. The role and the database, both named persist, come
-- first: docs/sinks.rst, "Least rights". In psql, as an administrator, connected to that database: \i conf/postgres.sql

-- What a database gives to everybody. Not needed: TEMPORARY, and CREATE in the schema, as before PostgreSQL 15.
REVOKE ALL ON DATABASE persist FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT CONNECT ON DATABASE persist TO persist;
GRANT USAGE ON SCHEMA public TO persist;

CREATE TABLE translation_sessions (
    session_id VARCHAR(64) NOT NULL,
    filename VARCHAR(255) NOT NULL,
    file_path VARCHAR(512) NOT NULL,
    status VARCHAR(20) NOT NULL,
    game_info JSONB,
    llm_provider VARCHAR(50) NOT NULL,
    metadata JSONB,
    total_tasks INTEGER DEFAULT 0 NOT NULL,
    completed_tasks INTEGER DEFAULT 0 NOT NULL,
    failed_tasks INTEGER DEFAULT 0 NOT NULL,
    processing_tasks INTEGER DEFAULT 0 NOT NULL,
    extra JSONB,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (session_id)
);

CREATE TABLE translation_tasks (
    session_id VARCHAR(64) NOT NULL,
    task_id VARCHAR(64) NOT NULL,
    batch_id VARCHAR(64) NOT NULL,
    sheet_name VARCHAR(255) NOT NULL,
    row_index INTEGER NOT NULL,
    column_name VARCHAR(255) NOT NULL,
    source_text TEXT NOT NULL,
    target_text TEXT,
    context TEXT,
    status VARCHAR(20) NOT NULL,
    confidence DOUBLE PRECISION,
    error_message TEXT,
    retry_count INTEGER DEFAULT 0 NOT NULL,
    start_time TIMESTAMP WITH TIME ZONE,
    end_time TIMESTAMP WITH TIME ZONE,
    duration_ms BIGINT,
    extra JSONB,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (session_id, task_id)
);

GRANT SELECT, INSERT, UPDATE ON translation_sessions, translation_tasks TO persist;
-- Only to delete: DELETE requests, [retention], persistd cleanup.
GRANT DELETE ON translation_sessions, translation_tasks TO persist;

-- Only for writers = "several", see docs/scaling.rst.
-- ALTER TABLE translation_sessions
--     ADD COLUMN game_info_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN metadata_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN total_tasks_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN completed_tasks_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN failed_tasks_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN processing_tasks_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN extra_at TIMESTAMP WITH TIME ZONE NULL;
-- ALTER TABLE translation_tasks
--     ADD COLUMN target_text_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN context_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN confidence_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN error_message_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN retry_count_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN start_time_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN end_time_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN duration_ms_at TIMESTAMP WITH TIME ZONE NULL,
--     ADD COLUMN extra_at TIMESTAMP WITH TIME ZONE NULL;
-- CREATE TABLE translation_deletions (
--     session_id VARCHAR(64) NOT NULL,
--     task_id VARCHAR(64) NOT NULL,
--     deleted_at TIMESTAMP WITH TIME ZONE NOT NULL,
--     PRIMARY KEY (session_id, task_id)
-- );
-- GRANT SELECT, INSERT, UPDATE ON translation_deletions TO persist;
-- GRANT DELETE ON translation_deletions TO persist;
