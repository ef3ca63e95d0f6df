-- What the second released version changed in the first. Frozen: never edited.
ALTER TABLE request ADD COLUMN content BLOB;
ALTER TABLE request ADD COLUMN handover INTEGER NOT NULL DEFAULT 0;
ALTER TABLE request ADD COLUMN task INTEGER;
ALTER TABLE request ADD COLUMN max_reply INTEGER NOT NULL DEFAULT 0;
ALTER TABLE request ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE request ADD COLUMN sum BLOB NOT NULL DEFAULT x'';
ALTER TABLE answer ADD COLUMN sum BLOB NOT NULL DEFAULT x'';
ALTER TABLE source ADD COLUMN sum BLOB NOT NULL DEFAULT x'';
ALTER TABLE service ADD COLUMN unix_floor INTEGER NOT NULL DEFAULT 0;
CREATE TABLE pause (
  uplink TEXT NOT NULL, model TEXT NOT NULL, block TEXT NOT NULL, step INTEGER NOT NULL,
  until_ms INTEGER NOT NULL, PRIMARY KEY (uplink, model)
) STRICT, WITHOUT ROWID;
DROP INDEX request_ended;
CREATE INDEX request_ended ON request (ended_at) WHERE state >= 3 AND handover <> 1;
CREATE INDEX request_undelivered ON request (ended_at) WHERE state >= 3 AND handover = 1;
CREATE INDEX request_owed ON request (source_id, label, seq) WHERE handover = 1;
CREATE TABLE device_key (
  source_id INTEGER NOT NULL REFERENCES source, key TEXT NOT NULL, until_ms INTEGER NOT NULL,
  PRIMARY KEY (source_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX device_key_until ON device_key (until_ms);
CREATE TABLE device_epoch (
  source_id INTEGER NOT NULL REFERENCES source, uid TEXT NOT NULL, epoch INTEGER NOT NULL,
  highest INTEGER NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (source_id, uid, epoch)
) STRICT, WITHOUT ROWID;
CREATE INDEX device_epoch_at ON device_epoch (at_ms);
CREATE TABLE mailbox (
  source_id INTEGER NOT NULL REFERENCES source, uid TEXT NOT NULL, slot INTEGER NOT NULL,
  last INTEGER NOT NULL, turn INTEGER NOT NULL, request INTEGER NOT NULL, PRIMARY KEY (source_id, uid, slot)
) STRICT, WITHOUT ROWID;
