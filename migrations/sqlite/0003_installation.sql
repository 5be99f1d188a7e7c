-- Which database this is. One row.
CREATE TABLE installation (
    only_row INTEGER PRIMARY KEY DEFAULT 1 CHECK (only_row = 1),
    id       BLOB    NOT NULL CHECK (length(id) = 16)
) STRICT;

INSERT INTO installation (id) VALUES (randomblob(16));
