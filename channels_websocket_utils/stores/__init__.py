"""
Where tokens are kept. A store keeps rows and knows no rule; ``tokens`` knows them all.
"""
