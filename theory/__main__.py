from rlhf.runs.launch import launch
from theory.draw import Config, main

if __name__ == "__main__":
    launch(main, Config)
