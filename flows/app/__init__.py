"""The app: a model answers in a browser and over HTTP, until Ctrl-C.

questions    what a request may ask, as strict JSON
answers      what is answered, as documents
pictures     the pictures in a request, read as the model takes them
work         scores, drawings and classes, step by step, so that a request can be given up
queue        the requests that wait for the device, which takes one at a time
replies      how work becomes an answer, whole or line by line, and errors become one line
champion     which model answers, and the change to a new champion between two requests
application  the routes
metrics      the figures for Prometheus
listening    the address, the server, and its end
page/        the page in the browser: HTML, CSS and JavaScript
"""
