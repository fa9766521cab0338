-- What the service's role may do. `migrate` calls this after every migration.

-- Makes the role exist and grants it what the service needs and no more: it reads and appends, and
-- changes only counters, strengths, documents and subscriptions. p_password_verifier is SCRAM's
-- (NULL: unchanged).
CREATE FUNCTION provision_service_role(p_role text, p_password_verifier text) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    IF p_role = current_user THEN
        RAISE EXCEPTION 'the service must not run as %, the owner of its tables', p_role
            USING ERRCODE = 'invalid_role_specification';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = p_role) THEN
        EXECUTE format(
            'CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS PASSWORD %L',
            p_role, p_password_verifier
        );
    ELSIF p_password_verifier IS NOT NULL THEN
        BEGIN
            EXECUTE format('ALTER ROLE %I PASSWORD %L', p_role, p_password_verifier);
        EXCEPTION WHEN insufficient_privilege THEN
            NULL; -- whoever made the role sets its password
        END;
    END IF;

    EXECUTE format('GRANT USAGE ON SCHEMA knowledge_base TO %I', p_role);
    REVOKE ALL ON ALL FUNCTIONS IN SCHEMA knowledge_base FROM PUBLIC;
    EXECUTE format('GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA knowledge_base TO %I', p_role);
    EXECUTE format('REVOKE EXECUTE ON FUNCTION provision_service_role FROM %I', p_role);

    EXECUTE format(
        'GRANT SELECT ON ALL TABLES IN SCHEMA knowledge_base TO %1$I;'
        'GRANT INSERT, DELETE ON narrative_documents, document_chunks TO %1$I;'
        'GRANT INSERT ON chunk_terms TO %1$I;'
        'GRANT INSERT, UPDATE ON lore_statistics TO %1$I;'
        'GRANT INSERT, UPDATE (event_count, event_term_count) ON worlds TO %1$I;'
        'GRANT INSERT ON story_events, story_event_terms, requests TO %1$I;'
        'GRANT INSERT, UPDATE (latest_version) ON narrative_concepts TO %1$I;'
        'GRANT INSERT ON concept_versions TO %1$I;'
        'GRANT INSERT, UPDATE (strength, record_time) ON concept_relationships TO %1$I;'
        'GRANT INSERT, UPDATE (event_types, sources, update_time), DELETE'
        ' ON event_subscriptions TO %1$I;',
        p_role
    );
END $$;
