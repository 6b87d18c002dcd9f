"Imported by the process that `test_ledger` forks its children from: what making a client loads, so that a kill falls into the work."
from rag_finetune.synthetic import sender

sender("tiny", "http://127.0.0.1:9/v1", 1., "none")
