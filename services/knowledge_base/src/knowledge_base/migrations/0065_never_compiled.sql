-- No statement of a function that chooses how it is planned is compiled (jit), whatever the server's
-- default is.
--
-- Before PostgreSQL 18 a way of planning that is switched off, and taken since there is no other,
-- adds 10^10 to the estimated cost. That is above every jit_above_cost, so servers that compile, as
-- they do by default, spent a tenth of a second and more on each statement that runs for a
-- millisecond, and did so each time: what is compiled is kept for no second run.
--
-- Functions that later migrations replace say so themselves.

DO $$
DECLARE
    v_function regprocedure;
BEGIN
    FOR v_function IN
        SELECT p.oid::regprocedure FROM pg_proc p
        WHERE p.pronamespace = 'knowledge_base'::regnamespace AND EXISTS (
            SELECT FROM unnest(p.proconfig) AS c (setting)
            WHERE c.setting LIKE 'enable\_%' OR c.setting LIKE 'plan\_cache\_mode=%'
        )
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET jit = off', v_function);
    END LOOP;
END $$;
