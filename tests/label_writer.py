"A process that writes labels and says so after each, for tests that kill it."
from rag_finetune.review import Label, LabelLog


def write(path, name, count, told):
    "Append `count` labels, every other one twice, as a double click would; send each one's id when `append` has returned."
    log = LabelLog(path)
    told.send("ready")
    for n in range(count):
        label = Label(f"{name}-{n}", name, f"r{n}", "edit", text="x" * (n * 997 % 5000), answers=("meals",))
        for _ in range(1 + n % 2): log.append(label)
        told.send(label.id)
