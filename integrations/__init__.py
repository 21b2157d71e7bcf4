"""The faces: LangChain, LlamaIndex and the command line. Mapping only, no algorithm."""
