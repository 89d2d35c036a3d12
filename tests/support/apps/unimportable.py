raise ValueError("this module is broken on purpose")
