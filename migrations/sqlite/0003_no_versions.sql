-- Nobody compares news of stock any more: whoever needs to know what is left reads it.
ALTER TABLE inventories DROP COLUMN version;
