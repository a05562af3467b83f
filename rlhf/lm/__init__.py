import logging

# peft imports bitsandbytes where it is installed, which reports a kernel that it cannot fetch and nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
