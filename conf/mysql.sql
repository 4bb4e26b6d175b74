-- The strict way with MySQL or MariaDB: an administrator makes the tables, and the service's user can use them and nothing
-- else. The service then needs create_tables = false below [sinks.mysql]. The user and the database, both named persist,
-- come first: docs/sinks.rst, "Least rights". As an administrator: mysql persist < conf/mysql.sql

-- The collation that compares keys byte by byte has two names: MariaDB reads the one, MySQL the other.
CREATE TABLE translation_sessions (
    session_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE /*M! utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */ NOT NULL,
    filename VARCHAR(255) NOT NULL,
    file_path VARCHAR(512) NOT NULL,
    status VARCHAR(20) NOT NULL,
    game_info JSON,
    llm_provider VARCHAR(50) NOT NULL,
    metadata JSON,
    total_tasks INTEGER NOT NULL DEFAULT 0,
    completed_tasks INTEGER NOT NULL DEFAULT 0,
    failed_tasks INTEGER NOT NULL DEFAULT 0,
    processing_tasks INTEGER NOT NULL DEFAULT 0,
    extra JSON,
    created_at DATETIME(6) NOT NULL,
    updated_at DATETIME(6) NOT NULL,
    PRIMARY KEY (session_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 ROW_FORMAT=DYNAMIC;

CREATE TABLE translation_tasks (
    session_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE /*M! utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */ NOT NULL,
    task_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE /*M! utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */ NOT NULL,
    batch_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE /*M! utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */ NOT NULL,
    sheet_name VARCHAR(255) NOT NULL,
    row_index INTEGER NOT NULL,
    column_name VARCHAR(255) NOT NULL,
    source_text MEDIUMTEXT NOT NULL,
    target_text MEDIUMTEXT,
    context MEDIUMTEXT,
    status VARCHAR(20) NOT NULL,
    confidence DOUBLE,
    error_message MEDIUMTEXT,
    retry_count INTEGER NOT NULL DEFAULT 0,
    start_time DATETIME(6),
    end_time DATETIME(6),
    duration_ms BIGINT,
    extra JSON,
    created_at DATETIME(6) NOT NULL,
    updated_at DATETIME(6) NOT NULL,
    PRIMARY KEY (session_id, task_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 ROW_FORMAT=DYNAMIC;

GRANT SELECT, INSERT, UPDATE ON persist.translation_sessions TO 'persist'@'%';
GRANT SELECT, INSERT, UPDATE ON persist.translation_tasks TO 'persist'@'%';
-- Only to delete: DELETE requests, [retention], persistd cleanup.
GRANT DELETE ON persist.translation_sessions TO 'persist'@'%';
GRANT DELETE ON persist.translation_tasks TO 'persist'@'%';

-- Only for writers = "several", see docs/scaling.rst.
-- ALTER TABLE translation_sessions
--     ADD COLUMN game_info_at DATETIME(6) NULL,
--     ADD COLUMN metadata_at DATETIME(6) NULL,
--     ADD COLUMN total_tasks_at DATETIME(6) NULL,
--     ADD COLUMN completed_tasks_at DATETIME(6) NULL,
--     ADD COLUMN failed_tasks_at DATETIME(6) NULL,
--     ADD COLUMN processing_tasks_at DATETIME(6) NULL,
--     ADD COLUMN extra_at DATETIME(6) NULL;
-- ALTER TABLE translation_tasks
--     ADD COLUMN target_text_at DATETIME(6) NULL,
--     ADD COLUMN context_at DATETIME(6) NULL,
--     ADD COLUMN confidence_at DATETIME(6) NULL,
--     ADD COLUMN error_message_at DATETIME(6) NULL,
--     ADD COLUMN retry_count_at DATETIME(6) NULL,
--     ADD COLUMN start_time_at DATETIME(6) NULL,
--     ADD COLUMN end_time_at DATETIME(6) NULL,
--     ADD COLUMN duration_ms_at DATETIME(6) NULL,
--     ADD COLUMN extra_at DATETIME(6) NULL;
-- CREATE TABLE translation_deletions (
--     session_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE /*M! utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */ NOT NULL,
--     task_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE /*M! utf8mb4_nopad_bin */ /*!80017 utf8mb4_0900_bin */ NOT NULL,
--     deleted_at DATETIME(6) NOT NULL,
--     PRIMARY KEY (session_id, task_id)
-- ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 ROW_FORMAT=DYNAMIC;
-- GRANT SELECT, INSERT, UPDATE ON persist.translation_deletions TO 'persist'@'%';
-- GRANT DELETE ON persist.translation_deletions TO 'persist'@'%';
