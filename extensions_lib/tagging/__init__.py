"""From pictures to words: taggers, captioners, and the pipeline that runs them over a folder.

Building a tab or parsing the command line imports no runtime: they load with the first model.
"""
