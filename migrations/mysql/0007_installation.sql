-- Which database this is: messages name it, so that a worker of another installation that shares a broker and its queue
-- names refuses them. One row.
CREATE TABLE installation (
    only_row TINYINT    NOT NULL DEFAULT 1,
    id       BINARY(16) NOT NULL,
    PRIMARY KEY (only_row),
    CONSTRAINT installation_is_one_row CHECK (only_row = 1)
) ENGINE = InnoDB;
