"""What `rag-finetune review` has Streamlit run, which wants the path of a script; a module made by nbdev has relative imports.

It has a folder of its own, since Streamlit puts that folder at the head of sys.path, where data.py, models.py and others must not be."""
import sys

from rag_finetune.review import page

if __name__ == "__main__": page(*sys.argv[1:])
