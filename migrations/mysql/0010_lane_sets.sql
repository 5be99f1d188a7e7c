CREATE TABLE lane_sets (
    queue_prefix VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    lanes        VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    used_at      DATETIME(3) NOT NULL,
    PRIMARY KEY (queue_prefix, lanes)
);
