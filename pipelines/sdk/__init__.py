"""The client's side: transports, pulled streams, reports, files, the console.

Knows no media and no models; never imports torch or DALI.
"""
