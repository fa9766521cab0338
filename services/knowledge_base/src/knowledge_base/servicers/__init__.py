"""gaming.knowledge_base.v1.KnowledgeBaseService, a module for each group of methods."""
