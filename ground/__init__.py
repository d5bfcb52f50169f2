"""What every floor stands on: files, chance, statistics, signals, processes and the terminal. It knows no maze."""
