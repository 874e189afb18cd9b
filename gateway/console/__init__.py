"""How do people see it? Pages rendered on the server, under /console.

May import the domain rooms' public functions and the dependencies; holds no rules and no SQL. Works without
JavaScript and loads nothing from elsewhere. A session is a signed cookie; everything it shows is escaped.
"""
