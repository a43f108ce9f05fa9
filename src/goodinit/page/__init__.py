"""A report or a signal as one HTML file that needs nothing else: from records to what the page says, and from that to HTML."""
