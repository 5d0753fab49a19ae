-- The ledgers of a fleet: each gateway writes a chain of its own. Columns and their meaning: src/ledger/row.rs.
-- Times are microseconds since 1970, amounts nano-dollars, rates pico-dollars per token. Texts are compared byte by byte.
-- A character that Postgres cannot hold (U+0000) is written as U+E000 and 0, U+E000 itself as U+E000 twice.
CREATE TABLE ledger (
    gateway             TEXT COLLATE "C" NOT NULL,
    seq                 BIGINT NOT NULL,
    at_us               BIGINT NOT NULL,
    kind                TEXT COLLATE "C" NOT NULL CHECK (kind IN ('intent', 'extension', 'settlement', 'release', 'unknown', 'change', 'summary', 'checkpoint')),
    intent              BIGINT CHECK ((intent IS NULL) = (kind IN ('intent', 'change', 'summary', 'checkpoint'))),
    admitted_us         BIGINT NOT NULL,
    request_id          TEXT COLLATE "C" NOT NULL,
    attempt             BIGINT NOT NULL,
    agent               TEXT COLLATE "C" NOT NULL,
    operation           TEXT COLLATE "C" NOT NULL,
    alias               TEXT COLLATE "C" NOT NULL,
    backend             TEXT COLLATE "C" NOT NULL,
    input_tokens        BIGINT NOT NULL CHECK (input_tokens >= 0),
    cached_input_tokens BIGINT NOT NULL CHECK (cached_input_tokens >= 0),
    cache_write_tokens  BIGINT NOT NULL CHECK (cache_write_tokens >= 0),
    output_tokens       BIGINT NOT NULL CHECK (output_tokens >= 0),
    reasoning_tokens    BIGINT NOT NULL CHECK (reasoning_tokens >= 0),
    estimated           BIGINT NOT NULL CHECK (estimated IN (0, 1)),
    leased_nano         BIGINT NOT NULL CHECK (leased_nano >= 0),
    input_pico          BIGINT NOT NULL,
    cached_input_pico   BIGINT NOT NULL,
    cache_write_pico    BIGINT NOT NULL,
    output_pico         BIGINT NOT NULL,
    catalog             TEXT COLLATE "C" NOT NULL,
    cost_nano           BIGINT NOT NULL CHECK (cost_nano >= 0),
    overrun_nano        BIGINT NOT NULL CHECK (overrun_nano >= 0),
    outcome             TEXT COLLATE "C" CHECK ((outcome IS NULL) = (kind IN ('intent', 'extension', 'change', 'checkpoint'))),
    ttft_ms             BIGINT,
    duration_ms         BIGINT,
    oldest_open         BIGINT NOT NULL,
    prev_hash           BYTEA  NOT NULL,
    hash                BYTEA  NOT NULL,
    team                TEXT COLLATE "C",
    run                 TEXT COLLATE "C",
    task                TEXT COLLATE "C",
    note                TEXT COLLATE "C" CHECK (note IS NULL OR kind IN ('change', 'checkpoint')),
    attempts            BIGINT CHECK ((attempts IS NULL) = (kind <> 'summary')),
    unknowns            BIGINT CHECK ((unknowns IS NULL) = (kind <> 'summary')),
    releases            BIGINT CHECK ((releases IS NULL) = (kind <> 'summary')),
    audio_input_tokens    BIGINT CHECK (audio_input_tokens > 0),
    audio_output_tokens   BIGINT CHECK (audio_output_tokens > 0),
    cache_write_1h_tokens BIGINT CHECK (cache_write_1h_tokens > 0),
    tier                  TEXT COLLATE "C",
    audio_input_pico      BIGINT,
    audio_output_pico     BIGINT,
    cache_write_1h_pico   BIGINT,
    PRIMARY KEY (gateway, seq)
);

CREATE INDEX ledger_spend ON ledger (gateway, admitted_us) WHERE outcome IS NOT NULL;
CREATE INDEX ledger_checkpoints ON ledger (gateway, seq) WHERE kind = 'checkpoint';

-- Every gateway that ever wrote here. Its rows up to `through` may be deleted: a checkpoint in its chain stands for them.
CREATE TABLE gateways (
    name    TEXT COLLATE "C" PRIMARY KEY,
    through BIGINT NOT NULL DEFAULT 0
);

CREATE FUNCTION ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND TG_LEVEL = 'ROW' THEN
        IF OLD.seq <= (SELECT through FROM gateways WHERE name = OLD.gateway) THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION 'the ledger is append-only';
END
$$;
CREATE TRIGGER ledger_keeps_rows BEFORE DELETE ON ledger FOR EACH ROW EXECUTE FUNCTION ledger_is_append_only();
CREATE TRIGGER ledger_keeps_values BEFORE UPDATE ON ledger FOR EACH ROW EXECUTE FUNCTION ledger_is_append_only();
CREATE TRIGGER ledger_keeps_all BEFORE TRUNCATE ON ledger FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only();

-- What is not in a gateway's configuration file: agents, keys, budgets, runs, pauses that were made while it ran. Each is a
-- JSON text, written together with the `change` row that says who did it.
CREATE TABLE state (
    gateway    TEXT COLLATE "C" NOT NULL,
    kind       TEXT COLLATE "C" NOT NULL,
    id         TEXT COLLATE "C" NOT NULL,
    body       TEXT NOT NULL,
    changed_us BIGINT NOT NULL,
    PRIMARY KEY (gateway, kind, id)
);
