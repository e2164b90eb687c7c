"""Fresh reviews: a Scrapy project whose sites are described by YAML, so a new site needs no code.

    python -m training.collection crawl --site FILE     what is new on a site, into DIR/site=NAME/day=YYYY-MM-DD/
    python -m training.collection card                  the data card of everything collected

A page goes through these, in order: ``polite`` and ``browser`` fetch it, ``page`` reads it, ``review`` judges each
of its reviews, ``store`` takes it (one page, one transaction) and says where to go on, ``files`` writes Parquet,
``card`` shows it.
"""
