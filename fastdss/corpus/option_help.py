"""What the options of data and of scoring mean: one text each, for the help of every command that has them."""

from __future__ import annotations

HELP = {
    "data": "file (JSON, CSV, Parquet, Arrow), folder, URL or Hub id",
    "guard": "guard model: a Hub id, a folder, or 'tiny' (contact details only)",
    "revision": "commit, tag or branch of the guard on the Hub",
    "every": "units per scored chunk",
    "unit": "what is counted to make a chunk",
    "max_tokens": "of rows longer than the guard's context, score what fits; otherwise such rows have no scores",
    "format": "format of the conversations; auto: found by the columns",
    "split": "which split to read of a folder, a file or a Hub id that has several",
    "config": "which configuration to read of a Hub id that has several",
    "turns": "judge and train all turns of the assistant that are to be trained, or the last of them",
    "prompt_column": "name of the column that holds the prompt",
    "response_column": "name of the column that holds the response",
    "messages_column": "name of the column that holds the messages",
    "id_column": "name of the column that holds the row's id",
    "number_rows": "use positions as ids, even where the data has ids",
    "max_bytes": "size of the largest row that is read, in bytes; larger rows fail",
}
